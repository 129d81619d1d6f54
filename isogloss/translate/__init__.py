"""From English alone: instructions and responses translated, filtered, and written as parallel data.

Flow: data → texts not in the journal → translator → journal → filter → parallel file and report.
"""
