"""What runs inside a slot as the tenant's worker: load its models, answer its requests. Hostile once it has loaded.

serve → bundle → weights     what a model is made of
      → runners              how a model is called
      → tensors              from packets and arenas to tensors and back
      → arenas               the mapped arenas of the tenant's sessions
"""
