"""The commands and what they print. A command calls checks and runners; it computes nothing itself."""
