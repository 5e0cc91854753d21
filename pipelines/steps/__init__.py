"""The path of a job, one verb a file: submit, plan, prepare, infer, complete."""
