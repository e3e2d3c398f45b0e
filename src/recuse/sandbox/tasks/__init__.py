"""The threads of the programs: who they are, their memory, and what they are made to do."""
