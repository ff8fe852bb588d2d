"""Draws the pictures of the loader's tests and what Pillow makes of them.

    pip install pillow
    python make_pictures.py

The drawing is made up; no photograph is in it. Written with Pillow 13.0.0.
"""

from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent


def drawing(width, height):
    """Gradients, curves, thin lines and text-like detail in all colours."""
    image = Image.new("RGB", (width, height))
    for y in range(height):
        for x in range(width):
            image.putpixel((x, y), (255 * x // width, 255 * y // height, 128 + 64 * ((x // 8 + y // 8) % 2)))
    draw = ImageDraw.Draw(image)
    w, h = width / 178, height / 218
    draw.ellipse((39 * w, 49 * h, 139 * w, 189 * h), fill=(230, 190, 160), outline=(60, 30, 20))
    for x in (65, 98):
        draw.ellipse((x * w, 95 * h, (x + 18) * w, 107 * h), fill=(250, 250, 250), outline=(0, 0, 0))
        draw.ellipse(((x + 6) * w, 97 * h, (x + 12) * w, 105 * h), fill=(20, 60, 140))
    draw.arc((69 * w, 135 * h, 109 * w, 165 * h), 10, 170, fill=(200, 0, 40), width=3)
    for x in range(0, width, 5):
        draw.line((x, 0, x + width // 10, 30 * h), fill=(90, 50, 10))
    return image


def save_reduced(image, name, crop, size):
    """Centre crop of `crop` pixels (rounded as torchvision does it), then antialiased bilinear."""
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    part = image.crop((left, top, left + crop, top + crop))
    part.resize((size, size), Image.Resampling.BILINEAR).save(HERE / name, optimize=True)


def main():
    drawing(178, 218).save(HERE / "full.jpg", quality=90)
    full = Image.open(HERE / "full.jpg").convert("RGB")
    for size in (32, 64, 128):
        save_reduced(full, f"full_{size}.png", 148, size)
    save_reduced(full.convert("L"), "full_grey_64.png", 148, 64)
    save_reduced(full, "full_square_64.png", 178, 64)

    drawing(89, 109).save(HERE / "half.jpg", quality=90)
    half = Image.open(HERE / "half.jpg").convert("RGB")
    save_reduced(half, "half_64.png", 74, 64)
    save_reduced(half, "half_128.png", 74, 128)  # enlarged

    small = drawing(48, 48)
    small.convert("CMYK").save(HERE / "cmyk.jpg", quality=90)
    Image.open(HERE / "cmyk.jpg").convert("RGB").save(HERE / "cmyk_48.png", optimize=True)
    small.convert("L").save(HERE / "grey.jpg", quality=90)
    Image.open(HERE / "grey.jpg").convert("RGB").save(HERE / "grey_48.png", optimize=True)
    small.save(HERE / "progressive.jpg", quality=90, progressive=True)
    Image.open(HERE / "progressive.jpg").convert("RGB").save(HERE / "progressive_48.png", optimize=True)
    small.convert("P", palette=Image.Palette.ADAPTIVE).save(HERE / "palette.png", optimize=True)
    Image.open(HERE / "palette.png").convert("RGB").save(HERE / "palette_48.png", optimize=True)

    alpha = small.copy()
    alpha.putalpha(Image.linear_gradient("L").resize((48, 48)))
    alpha.save(HERE / "alpha.png", optimize=True)
    white = Image.new("RGBA", alpha.size, "white")
    Image.alpha_composite(white, alpha).convert("RGB").save(HERE / "alpha_48.png", optimize=True)


if __name__ == "__main__":
    main()
