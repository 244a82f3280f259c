"""What a person sees: log lines, the live display, progress, tables, and what a signal does. Nothing here knows what a
job is.
"""
