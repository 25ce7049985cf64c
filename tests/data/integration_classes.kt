// The driver's words for semantic models.

package edgesam.deploy

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun drive(words: List<String>) {
    val size = Size(words[1].toInt(), words[2].toInt())
    val picture = Picture(File(words[3]).readBytes(), size)
    val found = if (words[4] == "-") regions(size) else regions(size, words[4].toInt())
    val map = ClassMap(size)
    for ((i, region) in found.withIndex()) {
        val name = words[5] + "/region" + i
        val input = segmenterInput(picture, region)
        if (input.bytes.isEmpty()) write(name + ".bin", input.floats) else File(name + ".bin").writeBytes(input.bytes)
        if (!File(name + ".out").exists()) continue
        if (GIVES_CLASS_MAP) putClassMap(map, region, readInts(name + ".out")) else putLogits(map, region, readFloats(name + ".out"))
    }
    val classes = ByteBuffer.allocate(2 * map.classes.size).order(ByteOrder.LITTLE_ENDIAN)
    classes.asShortBuffer().put(map.classes)
    File(words[5] + "/classes.bin").writeBytes(classes.array())
    write(words[5] + "/confidence.bin", map.confidence)
    println(found.size)
}
