"""What the three training scripts share: option groups, a step's questions, the loop, its log lines.

No algorithm is in here. You can skip it and read sft.py, grpo.py and ppo.py: they show what it gives them.
"""
