"""One file per tab: its layout and its small handlers. What connects tabs is in ui/app.py."""
