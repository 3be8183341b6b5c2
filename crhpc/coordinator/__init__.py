"""The whole job: phases over all nodes, and who decides. Never touches a process; sees a node through ``NodeDoor``."""
