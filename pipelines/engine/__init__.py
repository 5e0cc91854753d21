"""The model: checkpoint, tokenizer, prompt, scheduler, paged cache, runner, remote engine. The only room with torch."""
