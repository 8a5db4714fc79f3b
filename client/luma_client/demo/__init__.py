"""The demo: the project's whole job on real text, thin but real, every number measured."""

from luma_client.demo.run import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
