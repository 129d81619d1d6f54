"use strict";
// Whatever a model says is put on the page by textContent, so markup in it stays text.

const $ = (id) => document.getElementById(id);
const cells = new Map(); // "before sw" → its elements
let about = null, key = "", twins = null, put = null; // what is asked next, and what was
let asking = null, spoken = null; // the language that was asked in

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function written(node, language) {
  node.lang = language ? language.bcp47 : "";
  node.dir = language ? language.direction : "auto";
}

const known = (code) => about.languages.find((one) => one.code === code);
const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});
const seconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} s`;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function begin() {
  const answer = await fetch("/page.json", { headers: headers() });
  $("unlock").hidden = answer.status !== 401;
  if (answer.status === 401) {
    if (key) say("That is not the key.", true);
    $("key").focus();
    return;
  }
  if (!answer.ok) throw new Error(await problem(answer));
  about = await answer.json();
  say("");
  document.title = $("run").textContent = `${about.run}: one instruction, every language`;
  about.examples.forEach((texts, number) => {
    const option = element("option", "", texts.en.slice(0, 90));
    option.value = String(number);
    $("example").append(option);
  });
  $("offer").hidden = about.examples.length === 0;
  $("report").hidden = !about.report || key !== ""; // a link sends no key
  $("ask").hidden = false;
  $("text").focus();
}

async function problem(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the endpoint answers with status ${answer.status}`;
  }
}

function lay() {
  cells.clear();
  const cards = about.languages.map((language) => {
    const card = element("article", "answer"), title = element("h3", "");
    title.append(element("span", "", language.name));
    if (language.autonym !== language.name) {
      const autonym = element("span", "autonym", language.autonym);
      written(autonym, language);
      title.append(" ", autonym);
    }
    card.append(title);
    if (put && put[language.code]) {
      const asked = element("p", "text asked", put[language.code]);
      written(asked, language);
      card.append(asked);
    }
    const sides = element("div", "sides");
    for (const [side, name] of [["before", "Before"], ["after", "After"]]) {
      const part = element("div", ""), said = element("p", "text said waiting"), marks = element("ul", "marks");
      written(said, null);
      part.append(element("h5", "", name), said, marks);
      sides.append(part);
      cells.set(`${side} ${language.code}`, { said, marks, language });
    }
    card.append(sides);
    return card;
  });
  $("answers").replaceChildren(...cards);
}

function take(line) {
  for (const code of line.codes) {
    const { said, marks, language } = cells.get(`${line.side} ${code}`);
    said.append(line.text); // a string is appended as text
    if (line.error || line.finish) said.classList.remove("waiting");
    if (line.error) marks.append(element("li", "no", line.error));
    if (!line.finish) continue;
    const found = known(line.detected), right = found === language;
    // Words of another language may well be answered in it.
    const judged = (put && put[code]) || spoken === code;
    written(said, found);
    if (said.textContent === "") said.append(element("span", "soft", "(empty)"));
    if (!found) marks.append(element("li", "soft", "language not clear"));
    else if (!judged) marks.append(element("li", "soft", `in ${found.name}`));
    else marks.append(element("li", right ? "yes" : "no", `${right ? "✓" : "✗"} in ${found.name}`));
    marks.append(element("li", "soft", `${line.tokens} tokens, there after ${seconds(line.seconds)}`));
    if (line.finish === "length") marks.append(element("li", "no", "✗ truncated at the token limit"));
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function ask() {
  if (asking || $("text").value.trim() === "") return;
  asking = new AbortController();
  $("go").disabled = true;
  $("stop").hidden = false;
  say("Asked.");
  const began = performance.now();
  let done = 0, read = "";
  try {
    put = twins; // what is typed from here on is another question
    const body = JSON.stringify({ text: $("text").value, twins: put || {} });
    const answer = await fetch("/answers", {
      method: "POST", body, signal: asking.signal,
      headers: { "Content-Type": "application/json", ...headers() },
    });
    if (!answer.ok) throw new Error(await problem(answer));
    lay();
    for await (const line of lines(answer.body)) {
      if (!line.side) {
        const found = known(line.detected);
        spoken = line.detected;
        read = found ? `Read as ${found.name}. ` : "Its language is not clear. ";
      } else {
        take(line);
        if (line.error || line.finish) done += line.codes.length;
      }
      say(`${read}${done} of ${cells.size} answers.`);
    }
    if (done < cells.size) throw new Error("the endpoint has gone away");
    say(`${read}${done} answers in ${seconds((performance.now() - began) / 1000)}.`);
  } catch (error) {
    for (const { said } of cells.values()) said.classList.remove("waiting");
    if (error.name === "AbortError") say(`${read}Stopped after ${done} of ${cells.size} answers.`);
    else say(`${error.message}.`, true);
  } finally {
    asking = null;
    $("go").disabled = false;
    $("stop").hidden = true;
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  start();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
$("text").addEventListener("input", () => {
  twins = null; // these words are the reader's own
  $("example").value = "";
});
$("example").addEventListener("change", () => {
  twins = about.examples[$("example").value] || null;
  $("text").value = twins ? twins.en : "";
});
$("stop").addEventListener("click", () => asking && asking.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && asking) asking.abort();
});

const start = () => begin().catch((error) => say(`${error.message}.`, true));
start();
