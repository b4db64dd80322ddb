"""What trajectories of our own making say around their programs, in varied phrasings."""

BEFORE = ("I compute it.\n", "With Python:\n", "Let me run code.\n")
REPAIR = ("Corrected:\n", "Once more:\n")
AFTER = ("", "Answer: ", "It is ")
