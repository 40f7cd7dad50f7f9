"""The page in the browser: what is typed and clicked -> library calls; no arithmetic of saliency.

Only what a page is built and served with needs the extra `app`; all else are functions without
Gradio.
"""
