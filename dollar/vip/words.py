"""The words by which prompts are judged: articles, places, and words of motion and of what is to be seen."""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = _set("a an the")
# Words that mean nothing by themselves, which say nothing about whether a prompt is about places.
GLUE = _set(
    "in on at of to from by with and or near over under above below through across into for as is are was circa its "
    "north south east west northern southern eastern western central region province district county state city "
    "town village capital republic"
)
TITLES = _set("mr mrs ms dr st vs prof jr sr no etc approx mt")

STRONG = _set(
    "run walk drive fly swim jump race dance move ride chase crash explode erupt fall roll spin rotate swirl sprint "
    "gallop climb dive surf ski skate march flow rush pour splash fight throw kick swing bounce circle orbit zoom "
    "travel sail row pedal cycle soar glide leap hop crawl tumble burst shoot launch accelerate speed stampede whirl "
    "twirl juggle wrestle box hurl toss sweep collapse shatter pan track flee hunt hurry jog parade paddle slide drift "
    "timelapse hyperlapse"
)
SLIGHT = _set(
    "slow slowly gentle gently blink breathe sway turn tilt flicker shimmer ripple nod smile sip stir flutter tremble "
    "twinkle glow whisper read write type sit wave melt bloom open close look gaze subtle subtly softly slight slightly"
)
STILL = _set("still static motionless stationary frozen unmoving standstill photograph painting portrait")

_COLOURS = (
    "red green blue yellow magenta cyan black gray grey white brown orange purple pink violet golden gold silver "
    "crimson scarlet turquoise teal emerald amber ivory beige navy indigo colorful colourful pastel vibrant vivid "
    "monochrome rainbow"
)
_LIGHT = (
    "light lit sunlit moonlit sunlight moonlight sunset sunrise dawn dusk twilight neon bright dark dim glow glowing "
    "shadow shadowy backlit backlight candlelight golden-hour shiny sparkle sparkling glitter shimmering luminous "
    "misty foggy hazy cloudy sunny stormy starry snowy rainy cloud snow"
)
_PICTURE = (
    "4k 8k hd uhd cinematic photorealistic realistic detailed sharp crisp blurry bokeh close-up closeup macro aerial "
    "panoramic small large tiny huge tall wide texture textured pattern patterned transparent "
    "reflective ornate"
)
VISUAL = _set(f"{_COLOURS} {_LIGHT} {_PICTURE}")
MATERIAL = _set(
    "wooden leather silk velvet marble stone brick glass metal metallic rusty golden-brown worn weathered polished "
    "rough smooth fluffy furry woolen woollen lace linen denim porcelain ceramic bronze copper crystal icy sandy dusty "
    "grassy mossy lush rugged cobblestone"
)

_COUNTRIES = """
afghanistan albania algeria andorra angola argentina armenia australia austria azerbaijan bahamas bahrain bangladesh
barbados belarus belgium belize benin bhutan bolivia bosnia herzegovina botswana brazil brunei bulgaria burundi cambodia
cameroon canada chad chile china colombia comoros congo croatia cuba cyprus czechia denmark djibouti dominica ecuador
egypt eritrea estonia eswatini ethiopia fiji finland france gabon gambia georgia germany ghana greece grenada guatemala
guinea guyana haiti honduras hungary iceland india indonesia iran iraq ireland israel italy jamaica japan jordan
kazakhstan kenya kiribati kosovo kuwait kyrgyzstan laos latvia lebanon lesotho liberia libya liechtenstein lithuania
luxembourg madagascar malawi malaysia maldives mali malta mauritania mauritius mexico micronesia moldova monaco mongolia
montenegro morocco mozambique myanmar namibia nauru nepal netherlands nicaragua niger nigeria norway oman pakistan palau
palestine panama paraguay peru philippines poland portugal qatar romania russia rwanda samoa senegal serbia seychelles
singapore slovakia slovenia somalia spain sudan suriname sweden switzerland syria taiwan tajikistan tanzania thailand
togo tonga tunisia turkey turkmenistan tuvalu uganda ukraine uruguay usa uk uzbekistan vanuatu vatican venezuela vietnam
yemen zambia zimbabwe england scotland wales europe asia africa america oceania antarctica
"""
_REGIONS = """
california texas florida hawaii alaska arizona nevada oregon utah colorado georgia virginia ohio michigan illinois
pennsylvania massachusetts bavaria tuscany sicily sardinia crete provence normandy catalonia andalusia siberia crimea
bali java sumatra borneo kerala goa rajasthan tibet hokkaido okinawa patagonia
"""
_CITIES = """
london paris berlin madrid barcelona rome milan venice florence naples vienna prague budapest warsaw krakow moscow
kyiv kiev istanbul ankara athens lisbon porto amsterdam rotterdam brussels copenhagen stockholm oslo helsinki dublin
edinburgh zurich geneva munich hamburg cologne frankfurt manchester liverpool dubai doha riyadh tehran baghdad
jerusalem cairo nairobi lagos johannesburg casablanca marrakech mumbai delhi kolkata chennai bangalore karachi lahore
dhaka kathmandu colombo bangkok hanoi saigon jakarta manila tokyo osaka kyoto seoul busan beijing shanghai shenzhen
guangzhou chongqing taipei sydney melbourne brisbane perth auckland wellington toronto montreal vancouver ottawa
chicago boston miami seattle philadelphia washington houston dallas denver atlanta havana
bogota lima santiago brasilia caracas
quito
"""
_SEVERAL = (
    "united states|united kingdom|united arab emirates|new zealand|south korea|north korea|saudi arabia|sri lanka|"
    "costa rica|puerto rico|el salvador|dominican republic|czech republic|south africa|ivory coast|cape verde|"
    "burkina faso|sierra leone|papua new guinea|hong kong|new york|los angeles|san francisco|las vegas|san diego|"
    "new orleans|mexico city|rio de janeiro|sao paulo|buenos aires|cape town|tel aviv|abu dhabi|kuala lumpur|"
    "ho chi minh|st petersburg|saint petersburg|north america|south america|latin america|middle east"
)
# Longer names first, so that New York is one name of two words.
PLACES = re.compile(
    rf"(?<!\S)(?:{'|'.join([*_SEVERAL.split('|'), *sorted(_set(_COUNTRIES) | _set(_REGIONS) | _set(_CITIES))])})(?!\S)"
)
