"""The report of a sweep: one HTML page that needs nothing else, from what lies in the sweep's folder.

about      what a run writes down for the report: environment, sweep file, combinations left out
gather     everything the report is made of, read from the disk
words      question and answer in sentences
scales, charts, tables, samples, stages    what the sections show, as plain records
page       the records through the templates
formats, command, writer, serve    the page and its other forms, after a sweep and while it runs
"""
