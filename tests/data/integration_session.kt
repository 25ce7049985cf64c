// Runs LiteRt.kt over a bundle: BUNDLE H W RGB FOLDER; the best mask of each of two prompts to FOLDER/mask<i>.bin.

package edgesam.deploy

import java.io.File

fun main(words: Array<String>) {
    val prompts = listOf(
        Prompt(listOf(Point(40.5, 33.25))),
        Prompt(listOf(Point(40.5, 33.25), Point(7.0, 9.0, Label.BACKGROUND), Point(90.0, 120.0))),
    )
    EdgeSam(filesIn(File(words[0]))).use { sam ->
        sam.setPicture(Picture(File(words[3]).readBytes(), Size(words[1].toInt(), words[2].toInt())))
        for ((i, prompt) in prompts.withIndex()) {
            val answer = sam.predict(listOf(prompt)).single()
            File(words[4] + "/mask" + i + ".bin").writeBytes(answer.mask(answer.best()))
        }
    }
}
