"""Asyncio tools that know no word of our domain: they could be anybody's library, and import nothing of ours."""
