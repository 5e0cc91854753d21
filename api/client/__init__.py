"""The Python client, installed as the import package `batchsight`."""
