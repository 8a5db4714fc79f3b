"""Fidelity: how much held-out loss an optimizer's compressed state costs on real text.

python -m benchmarks.fidelity --data TEXT --optimizers adamw,luma --seeds 0,1,2 --json F --plot G

trains GPT-2 again and again from scratch, each optimizer at several learning rates, with equal
initial weights and equal data in equal order for equal seeds. docs/fidelity.md says what is
measured, how to fetch a text, and how to run it in parts or on a machine without a network.
"""
