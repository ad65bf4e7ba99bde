"""Shards from archives that are never unpacked: each is read once, front to back, and only what the recipes name is kept.

reading   an archive's members, of tgz, tar or zip, from a disk, a bucket or a web server
tables    the small part of the archives that planning needs
parking   what has come and is not in a shard yet: source files, then whole scenes
packing   archives -> parked scenes -> shards
needed    which files a wish needs, how large they are, which archives hold what is missing
"""
