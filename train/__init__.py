"""Training, export and measurement. The files here are scripts, run as `python -m train.NAME`; nothing imports them.

Below them are rooms, and a room imports only itself, rooms further down, and `r2id`:

    profiling    what a machine can do, and what a recipe costs on it
    losses       what each stage minimises; rollouts are judged by classifiers of `evaluation`
    evaluation   metrics, judges, reports, model cards
    engine       the loop, its state on disk, recipes, command lines
    data         images and their labels, and the shapes that a step draws
"""
