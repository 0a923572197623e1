"""The pages: thin routes over the store, server-rendered, working without scripts and better with them."""
