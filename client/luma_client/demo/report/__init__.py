"""The demo's HTML report: one file, no scripts, nothing fetched."""

from luma_client.demo.report.page import render

__all__ = ["render"]
