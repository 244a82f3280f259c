"""What the user sees: log lines, the live display, progress, tables, and the effect of a signal. Nothing here knows what a
job is.
"""
