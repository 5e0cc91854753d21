"""The model: checkpoint, tokenizer, prompt, scheduler, paged cache, runner, and the remote engine. The only room with torch."""
