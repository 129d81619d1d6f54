"""Build parallel data from English alone: translate instructions and responses, filter them, write them.

Flow: data → texts missing from the journal → translator → journal → filter → parallel file and report.
"""
