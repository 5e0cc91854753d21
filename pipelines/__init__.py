"""The domain: jobs, media, engine, storage and the steps between them. Knows neither FastAPI nor Celery."""
