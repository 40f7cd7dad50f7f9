"""What `explain` is: `explain` itself, `Explanation`, photos, regions and hints."""
