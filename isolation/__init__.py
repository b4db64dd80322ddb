"""The processes behind sandbox.py: template, worker, system calls, self-test, the SandboxFusion client.

sandbox.py says what is promised; here is how Linux keeps it. You can skip it unless you change what a
program may do.
"""
