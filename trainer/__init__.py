"""Models, data and training. Speaks through typed events; never imports gradio."""
