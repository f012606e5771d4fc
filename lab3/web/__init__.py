"""The page that `lmdeploy serve gradio` no longer gives: chat, tools, before and after, memory, in a browser."""
