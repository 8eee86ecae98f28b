"""The built-in tasks, one module each; `aqx.tasks.load_task` knows them by name."""
