"""Every flag once, with its help, parsed and checked into one Request. The templates' parameters are generated from the
same flags.
"""
