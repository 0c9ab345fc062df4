"""What runs inside a slot as the tenant's worker: load its models, answer its requests. Hostile once it has loaded.

serve → bundle → weights           what a model is made of
      → runners                    how a model is called
      → lanes → arenas             where requests come from, and the memory that they name
      → calls → tensors, stack     from packets and arenas to tensors and back, alone or in batches
                rooms              where a model may write its outputs itself
"""
