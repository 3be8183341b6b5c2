"""The checkpoint on disk: bytes, not Linux. docs/image-format.md describes it.

``format`` names and numbers, directories, the manifest; ``records`` dataclasses as tables; ``pages`` the
page log and its runs; ``writer`` one pod's shard, and the commit; ``reader`` opening and walking;
``browse`` the tree for people; ``check`` whether an image is whole, ``apart`` the same in a child. Needs numpy, h5py
and zstandard only.
"""
