"""The language of short texts: told where it is certain, and not guessed where it is not."""

import pytest

from warren.rollout.languages import is_other_language, language_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a red circle on the left of the square.", "english"),
        ("Auf dem Bild ist ein roter Kreis, und das Quadrat ist blau.", "german"),
        ("Il y a un cercle rouge dans cette image, et le carré est bleu.", "french"),
        ("Hay un círculo rojo en la imagen y el cuadrado es azul.", "spanish"),
        ("Há um círculo vermelho na imagem e o quadrado não é azul.", "portuguese"),
        ("C'è un cerchio rosso nella figura, il quadrato non è blu.", "italian"),
        ("Er staat een rode cirkel op de foto en het vierkant is blauw.", "dutch"),
        ("На картинке красный круг и синий квадрат.", "cyrillic"),
        ("图片里有一个红色的圆和一个蓝色的正方形。", "chinese"),
        ("画像には赤い円と青い四角があります。", "japanese"),
        ("그림에 빨간 원과 파란 사각형이 있습니다.", "korean"),
        ("الدائرة حمراء والمربع أزرق في الصورة", "arabic"),
        ("red", None),
        ("", None),
        ("12345 67890", None),
        ("blue green yellow circle", None),
        ("def f(x): return x + 1", None),
    ],
)
def test_languages_are_told_apart(text: str, expected: str | None) -> None:
    assert language_of(text) == expected


def test_an_answer_is_foreign_only_if_that_is_certain() -> None:
    question = "What is in the image, and which colour does it have?"
    assert is_other_language(question, "Auf dem Bild ist ein roter Kreis, und das Quadrat ist blau.")
    assert is_other_language(question, "图片里有一个红色的圆。")
    for answer in ("red", "", "rouge", "It is a red circle, and there is a blue one.", "東京 is the name on the sign."):
        assert not is_other_language(question, answer)
