"""What SFT learns from: formats, checks, reference programs, teachers.

You can skip it unless you make or check training data.
"""
