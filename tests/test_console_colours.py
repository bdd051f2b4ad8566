"""The page's 20 colours of classes: each differs from each, for everybody, on light and on dark."""

import itertools
import re

import numpy as np
import pytest
from conftest import ROOT

# Machado, Oliveira, Fernandes (2009), A Physiologically-based Model for Simulation of Color Vision
# Deficiency, table 1 at severity 1.0, of linear RGB:
# https://www.inf.ufrgs.br/~oliveira/pubs_files/CVD_Simulation/CVD_Simulation.html
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# sRGB's primaries and its white, D65 (IEC 61966-2-1)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colours):
    """`#rrggbb` as linear RGB [N, 3] in 0..1."""
    shown = np.array([[int(one[at : at + 2], 16) / 255 for at in (1, 3, 5)] for one in colours])
    return np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)


def to_lab(rgb):
    """Linear RGB [..., 3] as CIE L*a*b*."""
    xyz = np.clip(rgb, 0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(one, other):
    """The distance of L*a*b* colours [..., 3]. Sharma, Wu, Dalal (2005), The CIEDE2000
    Color-Difference Formula: https://hajim.rochester.edu/ece/sites/gsharma/ciede2000/
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    mean = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1 + 0.5 * (1 - np.sqrt(mean / (mean + 25**7)))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    between = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2)
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(np.radians(between - 30)) + 0.24 * np.cos(np.radians(2 * between))
    t += 0.32 * np.cos(np.radians(3 * between + 6)) - 0.2 * np.cos(np.radians(4 * between - 63))
    s_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    twist = 60 * np.exp(-((((between % 360) - 275) / 25) ** 2))
    r = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * np.sin(np.radians(twist))
    parts = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return np.sqrt(sum(part**2 for part in parts) + r * parts[1] * parts[2])


@pytest.mark.parametrize(
    "one, other, distance",
    [  # of the table of Sharma, Wu, Dalal
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_distance_is_the_one_of_the_paper(one, other, distance):
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(distance, abs=1e-4)


def page_colours():
    source = (ROOT / "console/charts.js").read_text()
    return re.findall(r"#[0-9a-f]{6}", re.search(r"COLOURS = \[(.*?)\]", source, re.DOTALL)[1])


LEAST = (
    10.8  # of CIEDE2000: as the nearest two of Okabe and Ito's, orange and purple for tritanopia
)


@pytest.mark.parametrize("vision", VISIONS)
def test_every_two_colours_differ_whoever_looks(vision):
    colours = page_colours()
    assert len(colours) == 20
    seen = to_lab(linear(colours) @ np.transpose(VISIONS[vision]))
    near = [
        (one, other, round(float(ciede2000(seen[m], seen[n])), 1))
        for (m, one), (n, other) in itertools.combinations(enumerate(colours), 2)
        if ciede2000(seen[m], seen[n]) < LEAST
    ]
    assert near == []


def test_every_colour_stands_out_from_the_page_light_and_dark():
    """Contrast as in WCAG 2; the least is that of Okabe and Ito's yellow on white."""
    style = (ROOT / "console/console.css").read_text()
    grounds = re.findall(r"--card:\s*(#[0-9a-f]{3,6})", style)
    assert len(grounds) == 2
    for ground in grounds:
        whole = ground if len(ground) == 7 else "#" + "".join(2 * one for one in ground[1:])
        luminance = linear([whole, *page_colours()]) @ TO_XYZ[1] + 0.05
        contrast = np.maximum(luminance[1:] / luminance[0], luminance[0] / luminance[1:])
        assert contrast.min() > 1.3 and np.sort(contrast)[1] > 1.5, ground
