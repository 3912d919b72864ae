"""Work for many users on one machine: worker, fair queue, batching, generation. Nothing here knows Gradio."""
