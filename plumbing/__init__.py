"""Options, ranks, the run folder, checkpoints, safetensors folders, chat templates, HTTP.

Nothing of reinforcement learning is in here: what the scripts need from the machine, behind few names.
You can skip it until you change how a run is started, stored or spread over GPUs.
"""
