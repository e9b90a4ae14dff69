"""Image files for tests of data sets: small pictures, in parquet files of the hub's layout, and in folders."""

import io

from PIL import Image


def picture(number, side=6, mode="RGB"):
    """A picture that no other number has."""
    width, height = (side, side) if isinstance(side, int) else side
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = bytes((7 * number + 3 * place) % 256 for place in range(width * height * bands))
    return Image.frombytes(mode, (width, height), data)


def encoded(image, kind="png"):
    """The bytes of its file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_parquet(path, images, labels=None, image="image", label="label", names=None, **options):
    """Encoded images (bytes, or None) and labels as the hub's files hold them."""
    import json

    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {image: [{"bytes": data, "path": None} for data in images]}
    if labels is not None:
        columns[label] = labels
    table = pyarrow.table(columns)
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path, **options)
