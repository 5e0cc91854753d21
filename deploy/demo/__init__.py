"""The bundled demo checkpoint and the samples it reads."""
