"""`python -m harness.config`: print the page of all settings."""

from harness.config.page import render_page

print(render_page(), end="")
