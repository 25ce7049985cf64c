// The driver's words for promptable models.

package edgesam.deploy

import java.io.File

private fun readPrompts(path: String): List<Prompt> {
    val prompts = mutableListOf(Prompt())
    for (line in File(path).readLines()) {
        val words = line.split(" ")
        val numbers = words.drop(1).map { word -> if (word == "inf") Double.POSITIVE_INFINITY else if (word == "nan") Double.NaN else word.toDouble() }
        val last = prompts.last()
        when (words[0]) {
            "next" -> prompts += Prompt()
            "p" -> prompts[prompts.size - 1] = last.copy(points = last.points + Point(numbers[0], numbers[1], numbers[2].toInt()))
            "b" -> prompts[prompts.size - 1] = last.copy(box = Box(numbers[0], numbers[1], numbers[2], numbers[3]))
        }
    }
    return prompts
}

fun drive(words: List<String>) {
    if (words[0] == "best") {
        println(best(readFloats(words[2]), offered(words[1].toInt())))
        return
    }
    val size = Size(words[1].toInt(), words[2].toInt())
    when (words[0]) {
        "encode" -> encoderInputs(Picture(File(words[3]).readBytes(), size)).forEach { tensor -> write(words[4], tensor) }
        "decode" -> {
            val matrix = if (words[4] == "-") FloatArray(0) else positionMatrix(bytesOf(words[4]))
            val mask = if (words[5] == "-") FloatArray(0) else readFloats(words[5])
            decoderInputs(readPrompts(words[3]), size, matrix, mask).forEach { tensor -> write(words[6], tensor) }
        }
        else -> {
            val logits = readFloats(words[3])
            val large = upscaled(logits, size)
            write(words[4] + "/upscaled.bin", large)
            File(words[4] + "/thresholded.bin").writeBytes(thresholded(large))
            write(words[4] + "/stability.bin", floatArrayOf(stabilityScore(logits)))
        }
    }
}

private fun bytesOf(path: String): ByteArray = File(path).let { file -> if (file.exists()) file.readBytes() else ByteArray(0) }
