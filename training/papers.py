"""What the two papers publish, as values of options: the presets of every command but sft.py's.

docs/papers.md says which value is a paper's, and which one stands in for a value that no source gives.
"""

LIMITS = {
    "r1ci": {"max_tokens": 8192, "max_calls": 8, "timeout": 60.0},  # its length is not published
    "retool": {"max_tokens": 16384, "max_calls": 8, "timeout": 30.0},  # calls and seconds: verl's recipe
}
SAMPLES = {  # of an evaluation; R1-Code-Interpreter states the temperature alone
    "r1ci": {"temperature": 0.6, "top_p": 1.0, "samples": 1},
    "retool": {"temperature": 1.0, "top_p": 0.7, "samples": 32},
}
REINFORCEMENT = {
    "r1ci": LIMITS["r1ci"]
    | {
        "protocol": "r1ci",
        "reward": "r1ci",
        "steps": 600,
        "stage_steps": 150,
        "prompts": 128,
        "group": 5,
        "lr": 1e-6,
        "kl_coef": 0.001,
        "temperature": 1.0,
        "max_prompt": 2048,
    },
    "retool": LIMITS["retool"]
    | {
        "protocol": "retool",
        "reward": "retool",
        "steps": 400,
        "lr": 1e-6,
        "kl_coef": 0.0,
        "max_prompt": 2048,
    },
}
EVALUATION = {name: {"protocol": name} | LIMITS[name] | SAMPLES[name] for name in LIMITS}
# The paper's five samples per way have different temperatures; these values stand in for them.
CURRICULUM = {"r1ci": LIMITS["r1ci"] | {"samples": 5, "temperatures": "0.2,0.4,0.6,0.8,1.0"}}
