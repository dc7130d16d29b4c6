MODEL = ""
CASES = []
