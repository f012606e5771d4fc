"""Writes the corpus of student reports on which lab3's reading of reports is tested: texts, screenshots, verdicts."""
