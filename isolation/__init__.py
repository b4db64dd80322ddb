"""The processes behind sandbox.py: template, worker, system calls, self-test, the SandboxFusion client.

sandbox.py says what is promised, and this folder keeps it. Skip it unless you change what programs may do.
"""
