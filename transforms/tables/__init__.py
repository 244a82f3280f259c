"""Delta and Iceberg tables: which files hold the rows of one version, with what their logs know and the files lack. The
launcher reads the logs by the formats' own libraries; workers get the list.
"""
