"""The application: the command line, the HTML report and the demonstration."""

from gwa_offline.app.demo import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
