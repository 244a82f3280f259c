from headrace.pipeline.start import entry

if __name__ == "__main__":
    entry()
