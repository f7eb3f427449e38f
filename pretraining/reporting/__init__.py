"""Tables, figures, timing, TensorBoard scalars, and sizes, speed and quality of models: for every report of the project."""
